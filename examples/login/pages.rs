//! The HTML of the pages. Their style is in `style.css`.

use std::time::{Duration, SystemTime};

use jam_session::{Ending, SessionInfo};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::accounts;

pub(crate) const STYLE: &str = include_str!("style.css");

pub(crate) fn home(user: Option<&str>, visits: u64, notice: Option<&str>) -> Markup {
    let times = if visits == 1 { "once".to_owned() } else { format!("{visits} times") };
    let content = html! {
        (said(notice))
        h1 { @if let Some(user) = user { "Hello, " (user) } @else { "Hello" } }
        p.lead { "This browser has been here " strong { (times) } "." }
        @if user.is_some() {
            ul.cards {
                (card("/sessions", "Your sessions", "Where you are signed in. End what you do not recognise."))
                (card("/password", "Password", "Choose a new one. It signs you out everywhere else."))
                (card("/recovery", "Recovery codes", "Asks for your password, if you gave it more than five minutes ago."))
            }
        } @else {
            p { "Sign in, and the count goes on: what you had as a visitor stays yours." }
            p { a.button.primary href="/login" { "Sign in" } }
        }
    };
    match user {
        Some(_) => page("Home", "/", user, content),
        None => narrow("Home", "/", user, content),
    }
}

#[derive(Default)]
pub(crate) struct SignIn<'a> {
    pub(crate) username: &'a str,
    pub(crate) remember: bool,
    /// The page to go to.
    pub(crate) next: &'a str,
    /// Whether the user was redirected here from another page.
    pub(crate) first: bool,
    pub(crate) error: Option<&'a str>,
}

impl SignIn<'_> {
    pub(crate) fn page(&self) -> Markup {
        let retry = self.error.is_some();
        let content = html! {
            h1 { "Sign in" }
            @if self.first { p { "Please sign in first. You will then see the page that you asked for." } }
            (alert(self.error))
            form.stack method="post" action="/login" {
                input type="hidden" name="next" value=(self.next);
                div.field {
                    label for="username" { "User name" }
                    input #username name="username" value=(self.username) required maxlength="200" autofocus[!retry]
                        autocomplete="username" autocapitalize="none" spellcheck="false"
                        aria-invalid=[retry.then_some("true")] aria-describedby=[retry.then_some("problem")];
                }
                (password_field("password", "Password", "current-password", retry.then_some("problem"), retry))
                label.check {
                    input type="checkbox" name="remember" value="true" checked[self.remember];
                    span { "Keep me signed in" small { "For 30 days. Otherwise you are signed out after an hour without a visit." } }
                }
                button.primary { "Sign in" }
            }
            aside.hint aria-labelledby="demo" {
                h2 #demo { "Demonstration" }
                p { "Anybody may sign in as one of these:" }
                dl {
                    @for (name, password) in accounts::DEMO {
                        div { dt { code { (name) } } dd { code { (password) } } }
                    }
                }
            }
        };
        narrow(if self.error.is_some() { "Error: Sign in" } else { "Sign in" }, "/login", None, content)
    }
}

/// Asks for the password again, before a sensitive action.
pub(crate) fn confirm(user: &str, next: &str, error: Option<&str>) -> Markup {
    let content = html! {
        h1 { "Is it still you?" }
        p { "It has been a while since you signed in. Your password, please, before you see this page." }
        (alert(error))
        form.stack method="post" action="/confirm" {
            input type="hidden" name="next" value=(next);
            (whose_password(user))
            (password_field("password", "Password", "current-password", error.map(|_| "problem"), true))
            button.primary { "Continue" }
        }
    };
    narrow(if error.is_some() { "Error: Is it still you?" } else { "Is it still you?" }, next, Some(user), content)
}

pub(crate) fn recovery(user: &str) -> Markup {
    let content = html! {
        h1 { "Recovery codes" }
        p.lead { "Each of them signs you in once, should you ever forget your password." }
        ul.codes { @for code in ["7QKM-2XHD", "R4TN-9WJC", "M8PV-6BGZ", "D3YL-5FKS", "J9HX-4QRT", "W6CB-8NVM"] { li { code { (code) } } } }
        p.quiet { "Made up, for show: they are the same for everybody." }
    };
    page("Recovery codes", "/recovery", Some(user), content)
}

#[derive(Default)]
pub(crate) struct NewPassword<'a> {
    /// What is wrong with the current password as entered, and with the new one.
    pub(crate) of_current: Option<&'a str>,
    pub(crate) of_new: Option<&'a str>,
}

impl NewPassword<'_> {
    pub(crate) fn page(&self, user: &str) -> Markup {
        let error = self.of_current.or(self.of_new);
        let content = html! {
            h1 { "Change your password" }
            p { "You stay signed in here. Everywhere else you are signed out." }
            (alert(error))
            form.stack method="post" action="/password" {
                (whose_password(user))
                (password_field("current", "Current password", "current-password",
                    self.of_current.map(|_| "problem"), self.of_new.is_none()))
                (password_field("new", "New password", "new-password",
                    Some(if self.of_new.is_some() { "rule problem" } else { "rule" }), self.of_new.is_some()))
                p.quiet #rule { "At least 15 characters. A few words that do not belong together are easy to remember, and hard to guess." }
                (password_field("again", "New password, once more", "new-password", self.of_new.map(|_| "problem"), false))
                button.primary { "Change password" }
            }
        };
        let title = if error.is_some() { "Error: Change your password" } else { "Change your password" };
        narrow(title, "/password", Some(user), content)
    }
}

pub(crate) fn sessions(user: &str, notice: Option<&str>, list: &[SessionInfo], this: Option<&str>) -> Markup {
    let content = html! {
        (said(notice))
        h1 { "Your sessions" }
        p.lead {
            @match list.len() {
                0 | 1 => "You are signed in on this device, and nowhere else.",
                n => { "You have " strong { (n) " sessions" } ". End what you do not recognise, then change your password." }
            }
        }
        ul.sessions {
            @for session in list { (session_item(session, this == Some(session.handle.as_str()))) }
        }
        div.actions {
            @if list.len() > 1 { (action("/sessions/end-others", "Sign out everywhere else", "")) }
            (action("/logout-everywhere", "Sign out everywhere", "danger"))
        }
        details {
            summary { "Behind this page" }
            p { "A session ends when it was not used for as long as it says. This browser holds a random ID in a cookie that no \
                 script can read, and everything else is on the server. The ID can be changed without anybody noticing:" }
            (action("/sessions/rotate", "New session ID", ""))
            p { "A page can also stay open for as long as the session lives: " a href="/sessions/live" { "watch it end" } "." }
        }
    };
    page("Your sessions", "/sessions", Some(user), content)
}

/// A page in two parts. The text for the end of the session goes between them.
pub(crate) fn live(user: &str) -> (String, String) {
    const HERE: &str = "<!-- the ending -->";
    let content = html! {
        h1 { "Live" }
        p.lead { "Leave this page open, and end this session in another browser. It will say so here." }
        (PreEscaped(HERE))
    };
    let whole = page("Live", "/sessions/live", Some(user), content).into_string();
    let (first, rest) = whole.split_once(HERE).unwrap_or((&whole, ""));
    (first.to_owned(), rest.to_owned())
}

/// The text at the end of the live page.
pub(crate) fn ended(ending: Ending) -> Markup {
    let text = match ending {
        Ending::SignedOut => "This session was signed out.",
        Ending::Replaced => "You have signed in again, or signed out everywhere else.",
        Ending::Expired => "This session has expired.",
        Ending::Closed => "The server is being stopped.",
        // It is not known whether the session ended. A page with private data must treat this as an ending.
        _ => "This session cannot be reached.",
    };
    html! { p.alert role="alert" { (text) } p { a.button href="/sessions" { "Look again" } } }
}

fn session_item(session: &SessionInfo, is_this: bool) -> Markup {
    let device = session.data.get::<String>("device").ok().flatten().unwrap_or_else(|| "Unknown browser".to_owned());
    let began = session.signed_in.unwrap_or(session.created);
    html! {
        li.this[is_this] {
            div {
                div.device { strong { (device) } @if is_this { span.badge { "This device" } } }
                p.quiet {
                    span { "Signed in " (ago(began)) }
                    span { @if is_this { "In use now" } @else { "Last seen " (ago(session.last_seen)) } }
                    span { "Ends " (within(session.expires)) }
                }
            }
            form method="post" action="/sessions/end" {
                input type="hidden" name="handle" value=(session.handle);
                button aria-label={ "End: " (device) ", signed in " (in_words(began)) @if is_this { ", this device" } } { "End" }
            }
        }
    }
}

/// A message in place of a page.
pub(crate) fn message(title: &str, text: &str) -> Markup {
    narrow(title, "", None, html! { h1 { (title) } p { (text) } p { a.button href="/" { "To the start" } } })
}

fn page(title: &str, here: &str, user: Option<&str>, content: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · jam-session" }
                link rel="stylesheet" href="/style.css";
                link rel="icon" href=(ICON);
            }
            body.visitor[user.is_none()] {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a.brand href="/" { "jam-session" }
                    @if let Some(user) = user {
                        span.user title=(user) { (user) }
                        (action("/logout", "Sign out", "plain"))
                        nav aria-label="Main" {
                            @for (path, name) in PAGES { a href=(path) aria-current=[(path == here).then_some("page")] { (name) } }
                        }
                    }
                }
                main #main { (content) }
            }
        }
    }
}

/// A page with little content.
fn narrow(title: &str, here: &str, user: Option<&str>, content: Markup) -> Markup {
    page(title, here, user, html! { div.narrow { (content) } })
}

const PAGES: [(&str, &str); 4] =
    [("/", "Home"), ("/sessions", "Sessions"), ("/password", "Password"), ("/recovery", "Recovery")];

const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
                    %3Crect width='16' height='16' rx='4' fill='%232957c8'/%3E\
                    %3Ccircle cx='8' cy='8' r='3.5' fill='none' stroke='white' stroke-width='2'/%3E%3C/svg%3E";

fn card(path: &str, title: &str, text: &str) -> Markup {
    html! { li { a href=(path) { strong { (title) } span.quiet { (text) } } } }
}

fn action(path: &str, label: &str, class: &str) -> Markup {
    html! { form method="post" action=(path) { button class=[Some(class).filter(|class| !class.is_empty())] { (label) } } }
}

fn password_field(name: &str, label: &str, autocomplete: &str, described_by: Option<&str>, focus: bool) -> Markup {
    let invalid = described_by.is_some_and(|ids| ids.contains("problem"));
    html! {
        div.field {
            label for=(name) { (label) }
            input #(name) name=(name) type="password" required autocomplete=(autocomplete) autofocus[focus]
                aria-invalid=[invalid.then_some("true")] aria-describedby=[described_by];
        }
    }
}

/// A hidden field for password managers. It is not submitted.
fn whose_password(user: &str) -> Markup {
    html! { input type="text" value=(user) autocomplete="username" hidden readonly; }
}

/// A message that screen readers announce when the page opens.
fn alert(problem: Option<&str>) -> Markup {
    html! { @if let Some(problem) = problem { p.alert #problem role="alert" { (problem) } } }
}

fn said(notice: Option<&str>) -> Markup {
    html! { @if let Some(notice) = notice { p.notice role="status" { (notice) } } }
}

fn ago(time: SystemTime) -> Markup {
    stamp(time, &in_words(time))
}

fn in_words(time: SystemTime) -> String {
    match time.elapsed().unwrap_or_default() {
        recent if recent.as_secs() < 60 => "just now".to_owned(),
        past => format!("{} ago", rounded(past)),
    }
}

fn within(time: SystemTime) -> Markup {
    let left = time.duration_since(SystemTime::now()).unwrap_or_default();
    // Round to the nearest unit: a month that has just begun should not show as 29 days.
    let half = Duration::from_secs(if left > DAY {
        43_200
    } else if left > HOUR {
        1800
    } else {
        30
    });
    stamp(time, &format!("in {}", rounded(left + half)))
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn rounded(time: Duration) -> String {
    let seconds = time.as_secs();
    let (n, unit) = match seconds {
        0..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

/// Shows a time in words, and the exact time in the tooltip and in the `datetime` attribute.
fn stamp(time: SystemTime, words: &str) -> Markup {
    let exact = OffsetDateTime::from(time).replace_nanosecond(0).ok().and_then(|time| time.format(&Rfc3339).ok());
    let title = exact.as_deref().map(|exact| exact.replace('T', " ").replace('Z', " UTC"));
    html! { time datetime=[exact] title=[title] { (words) } }
}
