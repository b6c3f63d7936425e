//! A complete login to copy: sign in, remember me, a list of devices, changing the password, and a page that asks for the
//! password again. All pages are rendered on the server, without JavaScript.
//!
//! ```sh
//! cargo run --example login
//! ```
//!
//! The environment variable `LISTEN` sets the address (default: `127.0.0.1:3000`). `SESSION_STORE` sets the store:
//! `json:sessions.json` (the default), `memory`, or `redis://HOST` with the feature `redis`. With the default, you are still
//! signed in after a restart. The cookie `__Host-id` is `Secure`: browsers accept it over HTTPS, and most of them also over
//! plain HTTP from `localhost` and `127.0.0.1`.
//!
//! This file has the routes. The users are in `accounts.rs`, the middleware is in `around.rs`, and the pages are in `pages.rs`
//! and `style.css`, so that you can replace these one by one.

mod accounts;
mod around;
mod limited;
mod pages;

use std::{
    cmp::Reverse, convert::Infallible, env, error::Error as StdError, future::ready, net::SocketAddr, time::Duration,
};

use axum::{
    Form, Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRef, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::from_fn,
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use futures_util::{FutureExt, StreamExt, stream};
use jam_session::{Builder, Error, JsonSessions, MemorySessions, Session, SessionKey, SessionLayer, Sessions};
use maud::Markup;
use serde::Deserialize;
use tokio::{net::TcpListener, select, signal, time::sleep};
use tower_governor::{GovernorLayer, governor::GovernorConfigBuilder};
use tower_http::{csrf::CsrfLayer, set_header::SetResponseHeaderLayer};

use crate::{
    accounts::{Accounts, Ending, Refused, check_new},
    around::{POLICY, always, explain, foreign_form, nowhere, only_a_form, please_wait, sorry, too_many},
    limited::Limited,
    pages::{NewPassword, SignIn},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let limited = Limited::default();
    let store = env::var("SESSION_STORE").unwrap_or_else(|_| "json:sessions.json".to_owned());
    let sessions = open(&store, limited.clone()).await?;
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(&address).await.map_err(|error| format!("LISTEN={address}: {error}"))?;
    let app = app(App { sessions: sessions.clone(), accounts: Accounts::demo()?, limited });
    // Ctrl+C is handled from the first poll on, so poll once before anybody is told that the server runs.
    let interrupted = interrupted().shared();
    interrupted.clone().now_or_never();
    println!("listening on http://{}", listener.local_addr()?);
    for (name, password) in accounts::DEMO {
        println!("  sign in as {name}, password: {password}");
    }

    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(interrupted.clone());
    select! {
        ended = serving.into_future() => ended?,
        // Some request does not end. All others have had enough time.
        () = async { interrupted.await; sleep(PATIENCE).await } => {}
    }
    Ok(sessions.close().await?)
}

/// How long pending requests may take during shutdown.
const PATIENCE: Duration = Duration::from_secs(5);

async fn interrupted() {
    signal::ctrl_c().await.unwrap_or_default();
}

/// The store that `SESSION_STORE` names.
async fn open(store: &str, limited: Limited) -> Result<Sessions, Box<dyn StdError>> {
    match store.split_once(':').unwrap_or((store, "")) {
        ("memory", "") => Ok(set_up(MemorySessions::builder(), limited).build()?.erase()),
        ("json", path) => Ok(set_up(JsonSessions::builder(path), limited).open().await?.erase()),
        #[cfg(feature = "redis")]
        ("redis" | "rediss", _) => {
            use jam_session::{RedisSessions, stores::redis::Level};
            let sessions = set_up(RedisSessions::builder(store), limited).connect().await?;
            for finding in sessions.doctor().await.iter().filter(|finding| finding.level > Level::Fine) {
                eprintln!("redis: {finding}");
            }
            Ok(sessions.erase())
        }
        #[cfg(not(feature = "redis"))]
        (kind @ ("redis" | "rediss"), _) => Err(format!("SESSION_STORE: this build has no {kind} store").into()),
        // The rest of the URI may contain a password.
        (kind, _) => Err(format!("SESSION_STORE must be memory, json:PATH or redis://HOST, not {kind}").into()),
    }
}

/// The options, which are the same for every store.
fn set_up<T>(builder: Builder<T>, limited: Limited) -> Builder<T> {
    builder.sessions_per_key(limited::MOST).on_event(move |event| limited.hear(event))
}

#[derive(Clone)]
struct App {
    sessions: Sessions,
    accounts: Accounts,
    limited: Limited,
}

impl FromRef<App> for Limited {
    fn from_ref(app: &App) -> Self {
        app.limited.clone()
    }
}

impl FromRef<App> for Sessions {
    fn from_ref(app: &App) -> Self {
        app.sessions.clone()
    }
}

impl FromRef<App> for Accounts {
    fn from_ref(app: &App) -> Self {
        app.accounts.clone()
    }
}

fn app(app: App) -> Router {
    // Each IP address gets twenty attempts at once, and then one per three seconds. Behind a proxy, all requests come from the
    // proxy's address: use `SmartIpKeyExtractor` there, and only there, because any client can send the headers that it reads.
    let attempts = GovernorConfigBuilder::default().per_second(3).burst_size(20).finish().unwrap_or_default();
    let (by_address, accounts) = (attempts.limiter().clone(), app.accounts.clone());
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(60)).await;
            by_address.retain_recent();
            accounts.forget_attempts();
        }
    });

    let sessions = app.sessions.clone();
    Router::new()
        .route("/login", post(sign_in))
        .route("/confirm", post(confirm))
        .route("/password", post(change_password))
        .route_layer(GovernorLayer::new(attempts).error_handler(too_many))
        .route("/", get(home))
        .route("/login", get(sign_in_page))
        .route("/sessions", get(list))
        .route("/sessions/live", get(live))
        .route("/sessions/end", post(end))
        .route("/sessions/end-others", post(end_others))
        .route("/sessions/rotate", post(rotate))
        .route("/password", get(password_page))
        .route("/recovery", get(recovery))
        .route("/logout", post(sign_out))
        .route("/logout-everywhere", post(sign_out_everywhere))
        .route("/style.css", get(style))
        .fallback(nowhere)
        .method_not_allowed_fallback(only_a_form)
        .with_state(app)
        .layer(SessionLayer::new(sessions))
        .layer(CsrfLayer::new().with_rejection_response(|_| foreign_form()))
        .layer(DefaultBodyLimit::max(8 * 1024))
        .layer(from_fn(explain))
        .layer(always(header::CONTENT_SECURITY_POLICY, POLICY))
        .layer(always(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        // With `no-referrer`, browsers send `Origin: null` even for the site's own forms, and older browsers send no other hint.
        .layer(always(header::REFERRER_POLICY, "same-origin"))
        .layer(always(HeaderName::from_static("cross-origin-opener-policy"), "same-origin"))
        // After a sign-out, the back button must not show private pages.
        .layer(SetResponseHeaderLayer::if_not_present(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
}

// The handlers.

async fn home(session: Session) -> Result<Markup, Error> {
    session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
    let visits = session.get("visits")?.unwrap_or(1);
    Ok(pages::home(session.key().as_deref(), visits, session.take::<String>("notice")?.as_deref()))
}

async fn sign_in_page(session: Session) -> Response {
    match session.key() {
        Some(_) => Redirect::to("/").into_response(),
        None => SignIn::default().page().into_response(),
    }
}

#[derive(Deserialize)]
struct Credentials {
    username: String,
    password: String,
    #[serde(default)]
    remember: bool,
    #[serde(default)]
    next: String,
}

async fn sign_in(
    State(accounts): State<Accounts>,
    State(sessions): State<Sessions>,
    session: Session,
    headers: HeaderMap,
    Form(form): Form<Credentials>,
) -> Result<Response, Error> {
    // Phone keyboards often add a space.
    let username = form.username.trim();
    // Begin the login before the password is checked, because the user may be signed out everywhere during the check.
    let login = sessions.login(username).await?;
    if let Err(refused) = accounts.verify(username, form.password).await {
        let error = match refused {
            Refused::Wrong => WRONG.to_owned(),
            _ => refused.to_string(),
        };
        let next = page_of(&form.next);
        let page = SignIn { username, remember: form.remember, next, error: Some(&error), ..SignIn::default() };
        return Ok((refused.status(), page.page()).into_response());
    }
    session.bind(login);
    session.insert("device", device(&headers))?;
    // Set the timeout in both cases: a user who signs in again without the check mark has changed their mind.
    session.set_ttl(if form.remember { REMEMBERED } else { NOT_REMEMBERED });
    Ok(Redirect::to(page_of(&form.next)).into_response())
}

const WRONG: &str = "That user name and that password do not go together.";

/// The idle timeout.
const REMEMBERED: Duration = Duration::from_secs(30 * 86_400);
const NOT_REMEMBERED: Duration = Duration::from_secs(3600);

/// Where to go after signing in. Only our own pages are allowed, because the value comes from the request and could lead to any
/// site (an open redirect).
fn page_of(path: &str) -> &'static str {
    ["/sessions", "/password", "/recovery"].into_iter().find(|page| *page == path).unwrap_or("/")
}

/// The browser and the operating system, from the `User-Agent` header.
fn device(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let Some(found) = woothee::parser::Parser::new().parse(agent.get(..512).unwrap_or(agent)) else {
        return "Unknown browser".to_owned();
    };
    let browser = match found.name {
        "UNKNOWN" => "Unknown browser",
        "SamsungBrowser" => "Samsung Internet",
        name => name,
    };
    match found.os {
        "UNKNOWN" => browser.to_owned(),
        "Mac OSX" => format!("{browser} on macOS"),
        // Browsers report version 10 for Windows 11 as well.
        system if system.starts_with("Windows") => format!("{browser} on Windows"),
        system => format!("{browser} on {system}"),
    }
}

async fn sign_out(session: Session) -> Redirect {
    session.delete();
    Redirect::to("/")
}

async fn sign_out_everywhere(State(accounts): State<Accounts>, session: Session) -> Response {
    if let Some(user) = session.key()
        && let Err(wait) = accounts.may_end(&user, Ending::All)
    {
        return please_wait(wait);
    }
    session.clear();
    Redirect::to("/").into_response()
}

/// Only for users who are signed in: the extractor of the session key ensures it.
async fn list(
    State(sessions): State<Sessions>,
    State(limited): State<Limited>,
    SessionKey(user): SessionKey,
    session: Session,
) -> Result<Markup, Error> {
    let mut list = sessions.list(&user).await?;
    let this = session.handle();
    list.sort_by_key(|info| (this.as_ref() != Some(&info.handle), Reverse(info.last_seen)));
    let notice = session.take::<String>("notice")?.or_else(|| limited.take_notice(&user));
    Ok(pages::sessions(&user, notice.as_deref(), &list, this.as_deref()))
}

/// A page that stays open and says when its session ends. It is sent in two parts, and browsers show the first part at once, so
/// it needs no JavaScript.
async fn live(SessionKey(user): SessionKey, session: Session) -> Response {
    let ended = session.ended();
    let (first, rest) = pages::live(&user);
    let last = async move {
        let said = select! {
            ending = ended => pages::ended(ending),
            // Without this, the stream would keep the server from shutting down.
            () = interrupted() => pages::ended(jam_session::Ending::Closed),
        };
        format!("{}{rest}", said.into_string())
    };
    let parts = stream::once(ready(first)).chain(stream::once(last)).map(Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], Body::from_stream(parts)).into_response()
}

#[derive(Deserialize)]
struct ToEnd {
    handle: String,
}

async fn end(
    State(accounts): State<Accounts>,
    State(sessions): State<Sessions>,
    SessionKey(user): SessionKey,
    session: Session,
    Form(form): Form<ToEnd>,
) -> Result<Response, Error> {
    if session.handle().as_ref() == Some(&form.handle) {
        session.delete();
        return Ok(Redirect::to("/").into_response());
    }
    if let Err(wait) = accounts.may_end(&user, Ending::One) {
        return Ok(please_wait(wait));
    }
    let ended = sessions.revoke(&user, &form.handle).await?;
    session.insert("notice", if ended { "That session is signed out." } else { "That session had ended before." })?;
    Ok(Redirect::to("/sessions").into_response())
}

async fn end_others(
    State(accounts): State<Accounts>,
    SessionKey(user): SessionKey,
    session: Session,
) -> Result<Response, Error> {
    if let Err(wait) = accounts.may_end(&user, Ending::Others) {
        return Ok(please_wait(wait));
    }
    session.clear_others();
    session.insert("notice", "You are signed out everywhere else.")?;
    Ok(Redirect::to("/sessions").into_response())
}

async fn rotate(SessionKey(_): SessionKey, session: Session) -> Result<Redirect, Error> {
    session.rework();
    session.insert("notice", "This session has a new ID. Its old one ends in a few seconds.")?;
    Ok(Redirect::to("/sessions"))
}

async fn password_page(SessionKey(user): SessionKey) -> Markup {
    NewPassword::default().page(&user)
}

#[derive(Deserialize)]
struct PasswordChange {
    current: String,
    new: String,
    again: String,
}

async fn change_password(
    State(accounts): State<Accounts>,
    State(sessions): State<Sessions>,
    SessionKey(user): SessionKey,
    session: Session,
    Form(form): Form<PasswordChange>,
) -> Result<Response, Error> {
    if let Err(problem) = check_new(&user, &form.current, &form.new, &form.again) {
        let page = NewPassword { of_new: Some(problem), ..NewPassword::default() };
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page.page(&user)).into_response());
    }
    let login = sessions.login(&user).await?;
    if let Err(refused) = accounts.verify(&user, form.current).await {
        let page = NewPassword { of_current: Some(&refused.to_string()), ..NewPassword::default() };
        return Ok((refused.status(), page.page(&user)).into_response());
    }
    if let Err(error) = accounts.change_password(&user, form.new).await {
        eprintln!("a password was not changed: {error}");
        return Ok((StatusCode::INTERNAL_SERVER_ERROR, sorry()).into_response());
    }
    // This ends all other sessions, and any stolen copy of this one, because it gets a new ID.
    session.clear_others();
    session.bind(login);
    session.insert("notice", "Your password is changed, and you are signed out everywhere else.")?;
    Ok(Redirect::to("/sessions").into_response())
}

/// A page that must stay private even if the computer was left unattended.
async fn recovery(SessionKey(user): SessionKey, session: Session) -> Response {
    // If another server's clock is ahead, the time may lie in the future. Count it as just now.
    let since = session.signed_in().map(|time| time.elapsed().unwrap_or_default());
    match since.is_some_and(|since| since < LATELY) {
        true => pages::recovery(&user).into_response(),
        false => (StatusCode::UNAUTHORIZED, pages::confirm(&user, "/recovery", None)).into_response(),
    }
}

const LATELY: Duration = Duration::from_secs(5 * 60);

#[derive(Deserialize)]
struct Confirmation {
    password: String,
    next: String,
}

/// Signs in again. The session continues under a new ID.
async fn confirm(
    State(accounts): State<Accounts>,
    State(sessions): State<Sessions>,
    SessionKey(user): SessionKey,
    session: Session,
    Form(form): Form<Confirmation>,
) -> Result<Response, Error> {
    let next = page_of(&form.next);
    let login = sessions.login(&user).await?;
    Ok(match accounts.verify(&user, form.password).await {
        Ok(()) => {
            session.bind(login);
            Redirect::to(next).into_response()
        }
        Err(refused) => (refused.status(), pages::confirm(&user, next, Some(&refused.to_string()))).into_response(),
    })
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Wrong => StatusCode::UNAUTHORIZED,
            Self::TooManyAttempts(_) => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "max-age=600")], pages::STYLE)
}
