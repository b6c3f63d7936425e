//! A login to copy: pages from the server, passwords hashed with argon2, and a list of one's sessions to end them from.
//!
//! ```sh
//! cargo run --example login
//! ```
//!
//! `LISTEN` says where (`127.0.0.1:3000`), and `SESSION_STORE` where the sessions are kept (`json:sessions.json`, `memory`,
//! or with the feature `redis` also `redis://HOST`): sign in, stop it, start it, and you are still signed in. The cookie is
//! `__Host-id`, with `Secure`: browsers take it over HTTPS, and over plain HTTP from `localhost` and `127.0.0.1`.

use std::{
    env,
    error::Error as StdError,
    time::{Duration, SystemTime},
};

use argon2::{
    Argon2,
    password_hash::{PasswordVerifier, phc::PasswordHash},
};
use axum::{
    Form, Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use jam_session::{
    Error, ErrorKind, JsonSessions, MemorySessions, Session, SessionInfo, SessionKey, SessionLayer, Sessions,
};
use maud::{DOCTYPE, Markup, html};
use serde::Deserialize;
use tokio::{net::TcpListener, select, signal, sync::Semaphore, task::spawn_blocking, time::sleep};
use tower_http::csrf::CsrfLayer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let sessions = open(&env::var("SESSION_STORE").unwrap_or_else(|_| "json:sessions.json".to_owned())).await?;
    let listener = TcpListener::bind(env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned())).await?;
    println!("listening on http://{}", listener.local_addr()?);
    println!("sign in as ada (password lovelace) or grace (password hopper)");

    let serving = axum::serve(listener, app(sessions.clone())).with_graceful_shutdown(interrupted());
    select! {
        ended = serving.into_future() => ended?,
        // Somebody never comes to the end of a request: the others had their time.
        () = async { interrupted().await; sleep(PATIENCE).await } => {}
    }
    Ok(sessions.close().await?)
}

/// How long requests under way may take when it is to stop.
const PATIENCE: Duration = Duration::from_secs(5);

async fn interrupted() {
    signal::ctrl_c().await.unwrap_or_default();
}

/// The store that `SESSION_STORE` names.
async fn open(store: &str) -> Result<Sessions, Box<dyn StdError>> {
    match store.split_once(':').unwrap_or((store, "")) {
        ("memory", "") => Ok(MemorySessions::new().erase()),
        ("json", path) => Ok(JsonSessions::open(path).await?.erase()),
        #[cfg(feature = "redis")]
        ("redis" | "rediss", _) => {
            let sessions = jam_session::RedisSessions::connect(store).await?;
            for finding in sessions.doctor().await {
                eprintln!("redis: {finding}");
            }
            Ok(sessions.erase())
        }
        #[cfg(not(feature = "redis"))]
        (kind @ ("redis" | "rediss"), _) => Err(format!("SESSION_STORE: this build has no {kind} store").into()),
        // The rest of it may hold a password.
        (kind, _) => Err(format!("SESSION_STORE: {kind} is none of memory, json:PATH and redis://HOST").into()),
    }
}

fn app(sessions: Sessions) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/private", get(private))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/logout-everywhere", post(logout_everywhere))
        .route("/sessions/end", post(end))
        .route("/rotate", post(rotate))
        .route("/style.css", get(style))
        .fallback(nowhere)
        .method_not_allowed_fallback(only_a_form)
        .with_state(sessions.clone())
        .layer(SessionLayer::new(sessions))
        .layer(CsrfLayer::new().with_rejection_response(|_| foreign_form()))
        .layer(DefaultBodyLimit::max(8 * 1024))
        .layer(map_response(explain))
        .layer(map_response(harden))
}

// What people can do.

async fn home(State(sessions): State<Sessions>, session: Session) -> Result<Markup, Error> {
    session.modify("visits", |n: Option<u64>| n.unwrap_or(0) + 1)?;
    let visits = session.get("visits")?.unwrap_or(1);
    let Some(user) = session.key() else { return Ok(sign_in_page(Some(visits), "", None)) };
    let notice = session.get::<String>("notice")?;
    session.remove("notice");
    let list = sessions.list(&user).await?;
    Ok(sessions_page(&user, visits, notice.as_deref(), &list, session.handle().as_deref()))
}

/// Nobody gets here without being signed in: the extractor sees to it.
async fn private(SessionKey(user): SessionKey) -> Markup {
    page(
        "Private",
        html! {
            p { "Only you see this, " strong { (user) } "." }
            p { a href="/" { "Back to your sessions" } }
        },
    )
}

#[derive(Deserialize)]
struct Credentials {
    username: String,
    password: String,
}

async fn login(session: Session, Form(form): Form<Credentials>) -> Response {
    if !verify(&form.username, form.password).await {
        let error = "That user name and that password do not go together.";
        return (StatusCode::UNAUTHORIZED, sign_in_page(None, &form.username, Some(error))).into_response();
    }
    session.bind(form.username);
    Redirect::to("/").into_response()
}

async fn logout(session: Session) -> Redirect {
    session.delete();
    Redirect::to("/")
}

async fn logout_everywhere(session: Session) -> Redirect {
    session.clear();
    Redirect::to("/")
}

#[derive(Deserialize)]
struct Ending {
    handle: String,
}

async fn end(
    State(sessions): State<Sessions>,
    SessionKey(user): SessionKey,
    session: Session,
    Form(form): Form<Ending>,
) -> Result<Redirect, Error> {
    if session.handle().as_ref() == Some(&form.handle) {
        session.delete();
    } else {
        let ended = sessions.revoke(&user, &form.handle).await?;
        session
            .insert("notice", if ended { "That device is signed out." } else { "That session had ended before." })?;
    }
    Ok(Redirect::to("/"))
}

async fn rotate(SessionKey(_): SessionKey, session: Session) -> Result<Redirect, Error> {
    session.rework();
    session.insert("notice", "This session has a new ID. Its old one ends in a few seconds.")?;
    Ok(Redirect::to("/"))
}

// Passwords.

/// The users, as a database would keep them.
const USERS: [(&str, &str); 2] = [
    ("ada", "$argon2id$v=19$m=19456,t=2,p=1$iPmkF4O/hCaZf8qfg0i/7A$sqMWBDFo7JvdviyLUuDzGr2W1p8ltVmmQjWRXs0xkCQ"),
    ("grace", "$argon2id$v=19$m=19456,t=2,p=1$BhTjxHBpNiy8eEoqiNsyEQ$Txu3xt38pA1dHT6Zna5hJULZoIzy4QUpGBKm1trR05c"),
];

/// Of no password: an unknown user name must take as long as a wrong password, or it tells who has an account.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$R4BJKqS4XjcoHutKHwk2tA$TflbV5eIUFZA0/k7+j1PWVyHwfvB0iHSKcFaoba3jAw";

/// Each takes 19 MiB and one core: more at a time would only take turns, and the memory.
static HASHING: Semaphore = Semaphore::const_new(4);

/// Whether the password is that user's. Whatever goes wrong on the way is a no.
async fn verify(username: &str, password: String) -> bool {
    let user = USERS.iter().find(|(name, _)| *name == username);
    let hash = user.map_or(NOBODY, |(_, hash)| hash);
    let Ok(permit) = HASHING.acquire().await else { return false };
    let matches = spawn_blocking(move || {
        // Whoever asked may have gone by now, but the work is under way.
        let _permit = permit;
        PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
    });
    matches.await.unwrap_or(false) && user.is_some()
}

// What goes around every response.

/// Answers an error of the session, the extractors' and the layer's own included, with a page instead of a line of text.
async fn explain(response: Response) -> Response {
    let Some(error) = response.extensions().get::<Error>() else { return response };
    let page = match error.kind() {
        ErrorKind::Unauthorized => sign_in_page(None, "", Some("Sign in first.")),
        ErrorKind::Unavailable => message_page("One moment", "Your session cannot be reached. Try again soon."),
        ErrorKind::TooLarge => message_page("Too much", "That is more than a session can hold. Nothing was saved."),
        _ => message_page("That went wrong", "It is our fault, and nothing was saved. Try again later."),
    };
    // The status, the cookie and what else the layer said stay; what described the old body goes.
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_TYPE);
    parts.headers.remove(header::CONTENT_LENGTH);
    (parts, page).into_response()
}

async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let policy = "default-src 'none'; style-src 'self'; img-src data:; \
                  form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // With `no-referrer` a browser says `Origin: null` in its own forms too, and older ones say nothing else.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    // After a sign-out, the back button shows nothing.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn foreign_form() -> Response {
    (StatusCode::FORBIDDEN, message_page("Refused", "That form came from another site. Nothing was done."))
        .into_response()
}

async fn nowhere() -> (StatusCode, Markup) {
    (StatusCode::NOT_FOUND, message_page("Nothing here", "There is no such page."))
}

/// The page after a form has the form's address: whoever opens it again ends up here.
async fn only_a_form() -> (StatusCode, Markup) {
    (StatusCode::METHOD_NOT_ALLOWED, message_page("Nothing here", "This address only takes what a form sends."))
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "max-age=600")], STYLE)
}

// Pages.

fn page(title: &str, content: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="stylesheet" href="/style.css";
                link rel="icon" href="data:,";
            }
            body { main { h1 { (title) } (content) } }
        }
    }
}

fn message_page(title: &str, message: &str) -> Markup {
    page(title, html! { p { (message) } p { a href="/" { "To the start" } } })
}

fn sign_in_page(visits: Option<u64>, username: &str, error: Option<&str>) -> Markup {
    let content = html! {
        @if let Some(error) = error { p.error role="alert" { (error) } }
        form.stack method="post" action="/login" {
            label for="username" { "User name" }
            input #username name="username" value=(username) required
                autocomplete="username" autocapitalize="none" spellcheck="false";
            label for="password" { "Password" }
            input #password name="password" type="password" required autocomplete="current-password";
            button.primary { "Sign in" }
        }
        p.quiet { "Try " code { "ada" } " with " code { "lovelace" } ", or " code { "grace" } " with " code { "hopper" } "." }
        @if let Some(visits) = visits { (counter(visits)) }
    };
    page("Sign in", content)
}

fn sessions_page(user: &str, visits: u64, notice: Option<&str>, list: &[SessionInfo], this: Option<&str>) -> Markup {
    let content = html! {
        @if let Some(notice) = notice { p.notice role="status" { (notice) } }
        p { "You are signed in as " strong { (user) } ". " a href="/private" { "See a private page" } "." }
        ul.sessions {
            @for session in list { (session_item(session, this == Some(session.handle.as_str()))) }
        }
        div.actions {
            (action("/rotate", "New session ID"))
            (action("/logout", "Sign out"))
            (action("/logout-everywhere", "Sign out everywhere"))
        }
        (counter(visits))
    };
    page("Your sessions", content)
}

fn session_item(session: &SessionInfo, is_this: bool) -> Markup {
    let name = if is_this { "This device" } else { "Another device" };
    let began = ago(session.created);
    let seen = if is_this { "now".to_owned() } else { session.last_seen.map_or("at some time".to_owned(), ago) };
    html! {
        li.this[is_this] {
            div {
                strong { (name) }
                div.quiet { "Signed in " (began) " · seen " (seen) }
            }
            form method="post" action="/sessions/end" {
                input type="hidden" name="handle" value=(session.handle);
                button aria-label={ "End: " (name) ", signed in " (began) } { "End" }
            }
        }
    }
}

fn action(path: &str, label: &str) -> Markup {
    html! { form method="post" action=(path) { button { (label) } } }
}

fn counter(visits: u64) -> Markup {
    html! { p.quiet { "Visits from this browser: " (visits) } }
}

fn ago(time: SystemTime) -> String {
    let seconds = time.elapsed().unwrap_or_default().as_secs();
    let (n, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

const STYLE: &str = "
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #fff; --text: #1c2128; --quiet: #57606a; --line: #d0d5db;
  --accent: #1f5fbf; --on-accent: #fff; --bad: #a4161a; --good: #1a6b3c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --card: #1d2127; --text: #e6e9ed; --quiet: #a3acb8; --line: #3a424d;
    --accent: #8ab8ff; --on-accent: #10151c; --bad: #ff9a94; --good: #86d9a5;
  }
}
* { box-sizing: border-box; }
body { margin: 0; padding: clamp(1rem, 6vh, 4rem) 1rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 34rem; margin: 0 auto; padding: clamp(1.25rem, 5vw, 2.5rem); background: var(--card);
  border: 1px solid var(--line); border-radius: .75rem; }
h1 { margin: 0 0 1rem; font-size: 1.5rem; line-height: 1.25; }
p { margin: 1rem 0; }
main > :last-child { margin-bottom: 0; }
a { color: var(--accent); }
.quiet { color: var(--quiet); font-size: .9rem; }
.error, .notice { padding-left: .75rem; border-left: 3px solid; }
.error { color: var(--bad); }
.notice { color: var(--good); }
.stack { display: grid; gap: .35rem; }
.stack input { margin-bottom: .75rem; }
input { width: 100%; padding: .6rem .7rem; font: inherit; color: inherit; background: var(--page);
  border: 1px solid var(--quiet); border-radius: .4rem; }
button { padding: .55rem .9rem; font: inherit; color: inherit; background: transparent; border: 1px solid var(--quiet);
  border-radius: .4rem; cursor: pointer; }
button:hover { border-color: var(--accent); color: var(--accent); }
button.primary { margin-top: .25rem; background: var(--accent); border-color: var(--accent); color: var(--on-accent); font-weight: 600; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.sessions { margin: 1.5rem 0; padding: 0; list-style: none; }
.sessions li { display: flex; gap: 1rem; align-items: center; justify-content: space-between; padding: .8rem 0;
  border-top: 1px solid var(--line); }
.sessions li:last-child { border-bottom: 1px solid var(--line); }
.this strong { color: var(--accent); }
.actions { display: flex; flex-wrap: wrap; gap: .6rem; }
";
