//! Middleware for every response: security headers, and pages instead of plain errors.

use std::time::Duration;

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use jam_session::{Error, ErrorKind};
use maud::Markup;
use tower_governor::GovernorError;
use tower_http::set_header::SetResponseHeaderLayer;

use crate::{
    accounts::Refused,
    page_of,
    pages::{SignIn, message},
};

/// No scripts, no frames, nothing from other sites, and forms that submit only to this site.
pub(crate) const POLICY: &str = "default-src 'none'; style-src 'self'; img-src data:; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(crate) fn always(name: HeaderName, value: &'static str) -> SetResponseHeaderLayer<HeaderValue> {
    SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value))
}

/// Replaces the text of session errors with a page, including those of the extractors and of the layer.
pub(crate) async fn explain(request: Request, next: Next) -> Response {
    let (wanted, has_cookies) = (page_of(request.uri().path()), request.headers().contains_key(header::COOKIE));
    let response = next.run(request).await;
    let Some(error) = response.extensions().get::<Error>() else { return response };
    let is_out = error.kind() == ErrorKind::Unauthorized && has_cookies;
    let page = match error.kind() {
        ErrorKind::Unauthorized => SignIn { next: wanted, first: true, ..SignIn::default() }.page(),
        ErrorKind::Unavailable => message("One moment", "Your session cannot be reached. Please try again soon."),
        ErrorKind::TooLarge => message("Too much", "That is more than a session can hold. Nothing was saved."),
        _ => sorry(),
    };
    // Keep the status, the cookie and the other headers of the layer. Remove the headers that describe the old body.
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_TYPE);
    parts.headers.remove(header::CONTENT_LENGTH);
    if is_out {
        // The user was signed out elsewhere. Chromium keeps pages in its back/forward cache, even with `no-store`, until a cookie
        // changes.
        let changes = HeaderValue::from_static("__Host-out=1; HttpOnly; Secure; SameSite=Lax; Path=/; Max-Age=1");
        parts.headers.append(header::SET_COOKIE, changes);
    }
    (parts, page).into_response()
}

pub(crate) fn sorry() -> Markup {
    message("That went wrong", "It is our fault, and nothing was saved. Please try again later.")
}

pub(crate) fn too_many(error: GovernorError) -> Response {
    let GovernorError::TooManyRequests { wait_time, .. } = error else {
        return (StatusCode::INTERNAL_SERVER_ERROR, sorry()).into_response();
    };
    please_wait(Duration::from_secs(wait_time))
}

pub(crate) fn please_wait(wait: Duration) -> Response {
    // Round up: rounded down, the next try would be too early again.
    let seconds = wait.as_secs() + 1;
    let page = message("Too many attempts", &Refused::TooManyAttempts(Duration::from_secs(seconds)).to_string());
    (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds.to_string())], page).into_response()
}

pub(crate) fn foreign_form() -> Response {
    (StatusCode::FORBIDDEN, message("Refused", "That form came from another site. Nothing was done.")).into_response()
}

pub(crate) async fn nowhere() -> (StatusCode, Markup) {
    (StatusCode::NOT_FOUND, message("Nothing here", "There is no such page."))
}

/// The page after a form has the address of the form. Opening it again by `GET` leads here.
pub(crate) async fn only_a_form() -> (StatusCode, Markup) {
    (StatusCode::METHOD_NOT_ALLOWED, message("Nothing here", "This address only takes what a form sends."))
}
