//! The response: its cookie, `Vary` and `no-store`, and the error that replaces it if the commit failed.

use std::{mem, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, RETRY_AFTER, SET_COOKIE, VARY},
};

use crate::{
    error::{Error, ErrorKind},
    http::config::HttpConfig,
    session::{Session, commit::CookieChanges},
};

impl HttpConfig {
    /// Returns whether the handler's changes are discarded, except sign-outs.
    #[inline]
    pub(crate) fn is_failure<B: Default>(&self, response: &mut Response<B>) -> bool {
        let Some(failed_if) = &self.failed_if else { return is_failure(response) };
        let (parts, body) = mem::take(response).into_parts();
        let failed = failed_if(&parts);
        *response = Response::from_parts(parts, body);
        failed
    }
}

/// The default of [`failed_if`](crate::SessionLayer::failed_if).
fn is_failure<B>(response: &Response<B>) -> bool {
    response.status().is_server_error()
        || response.status() == StatusCode::REQUEST_TIMEOUT
        // A failed gRPC call without a body is a 200 with its gRPC status in a header.
        || response.headers().get("grpc-status").is_some_and(|status| status != "0")
}

/// Builds the final response: the handler's response with the cookie, or an error if the commit failed.
pub(crate) fn respond<B: Default>(
    config: &HttpConfig,
    session: &Session,
    committed: Result<(), Error>,
    response: Response<B>,
) -> Response<B> {
    // Our own error responses never remove a cookie.
    let (mut response, may_remove) = match committed {
        Ok(()) => (response, true),
        Err(error) => (refuse(&error), false),
    };
    let Some(cookies) = session.driver().outcome() else { return response };
    let headers = response.headers_mut();
    vary_by_cookie(headers);
    let CookieChanges { set, remove_user, remove_visitor } = cookies;
    let mut changes = false;
    for (is_visitors, remove) in [(false, remove_user), (true, remove_visitor)] {
        let line = match &set {
            Some(set) if set.is_visitors == is_visitors => {
                let left = set.deadline.saturating_sub(config.origin.engine().now());
                config.cookie.set(set, Duration::from_millis(left))
            }
            _ if remove && may_remove => config.cookie.remove(is_visitors),
            _ => None,
        };
        if let Some(line) = line {
            // Appended, because the handler may have set cookies of its own.
            headers.append(SET_COOKIE, line);
            changes = true;
        }
    }
    if changes {
        forbid_storing(headers);
    }
    response
}

/// A response without a body. The error is among its extensions.
pub(crate) fn refuse<B: Default>(error: &Error) -> Response<B> {
    error.log_answer("the layer answered a request with an error");
    let mut response = Response::new(B::default());
    *response.status_mut() = error.kind().status();
    if error.kind() == ErrorKind::Unavailable {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response.extensions_mut().insert(error.clone());
    response
}

fn vary_by_cookie(headers: &mut HeaderMap) {
    if !has_item(headers.get_all(VARY), |name| name == "*" || name.eq_ignore_ascii_case("cookie")) {
        headers.append(VARY, HeaderValue::from_static("Cookie"));
    }
}

/// Forbids caching. A shared cache that stored a response with a cookie would give one visitor's session to the next visitor.
fn forbid_storing(headers: &mut HeaderMap) {
    if !has_item(headers.get_all(CACHE_CONTROL), |directive| directive.eq_ignore_ascii_case("no-store")) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    // Each of these takes precedence over `Cache-Control` in some caches: the targeted headers of RFC 9213, and their
    // predecessors.
    let targeted = |name: &HeaderName| {
        name != CACHE_CONTROL && name.as_str().ends_with("cache-control")
            || ["surrogate-control", "edge-control", "x-accel-expires"].contains(&name.as_str())
    };
    let names: Vec<HeaderName> = headers.keys().filter(|name| targeted(name)).cloned().collect();
    for name in names {
        let value = if name == "x-accel-expires" { "0" } else { "no-store" };
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Returns whether a comma-separated header contains the item.
fn has_item(values: http::header::GetAll<'_, HeaderValue>, is_it: impl Fn(&str) -> bool) -> bool {
    values.iter().any(|value| items(value.to_str().unwrap_or_default()).any(|item| is_it(item.trim())))
}

/// Splits at commas, except those in quoted strings: RFC 9110, section 5.6.4.
fn items(value: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    value.split(move |c| {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            ',' => return !quoted,
            _ => {}
        }
        false
    })
}
