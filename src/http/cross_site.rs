//! The cross-site rule: which requests must not create a visitor's session.
//!
//! `SameSite` holds cookies back from requests that another site makes a browser send. Such a request looks like a visitor's,
//! and a session created for it would replace the one that the browser has. The docs of
//! [`session`](crate::session#requests-from-other-sites) explain it to users.

use cookie::SameSite;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{FORWARDED, HOST, ORIGIN},
};

use crate::http::cookie::CookieConfig;

/// Returns whether this request must not create a visitor's session, if it has no session.
///
/// This is decided for every request, because the headers are no longer available later. With `Lax`, headers are looked up
/// only for unsafe methods.
#[inline]
pub(crate) fn is_barred<B>(request: &Request<B>, cookie: &CookieConfig) -> bool {
    // The fast path of nearly all requests. The rest is not inlined.
    let is_common = request.method() == Method::GET && cookie.same_site() == SameSite::Lax;
    !is_common && decide(request.method(), request.uri(), request.headers(), cookie)
}

/// The same, for all other requests.
#[inline(never)]
fn decide(method: &Method, uri: &Uri, headers: &HeaderMap, cookie: &CookieConfig) -> bool {
    let may_lack_its_cookie = match cookie.same_site() {
        SameSite::None => false,
        SameSite::Lax => !method.is_safe(),
        SameSite::Strict => true,
    };
    may_lack_its_cookie && is_cross_site(uri, headers, cookie.domain())
}

/// Returns whether another site made the browser send this request.
fn is_cross_site(uri: &Uri, headers: &HeaderMap, domain: Option<&str>) -> bool {
    // Browsers send it over HTTPS and to `localhost`. No page can set it.
    if let Some(site) = headers.get(&SEC_FETCH_SITE) {
        return site == "cross-site";
    }
    // Navigations have no `Origin`, except those that post a form.
    let Some(origin) = headers.get(ORIGIN) else { return false };
    // Sandboxed frames send `null`, and so do forms after a redirect through another site.
    let Some(host) = host_of_origin(origin) else { return true };
    let is_own = own_hosts(uri, headers).any(|own| own.eq_ignore_ascii_case(host))
        || domain.is_some_and(|domain| is_within(host, domain));
    !is_own
}

/// Returns the hosts that the request was sent to: the one that it names, and the original ones that proxies report.
///
/// A page of another site cannot add a proxy's headers to a form, and a script that adds one is stopped by CORS.
fn own_hosts<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> impl Iterator<Item = &'a [u8]> {
    let named = match uri.authority() {
        // HTTP/2 has no `Host`. If there are both, the authority counts: RFC 9112, section 3.2.2.
        Some(authority) => Some(authority.host().as_bytes()),
        None => headers.get(HOST).map(HeaderValue::as_bytes),
    };
    let de_facto =
        headers.get_all(&X_FORWARDED_HOST).into_iter().flat_map(|line| line.as_bytes().split(|b| *b == b','));
    let standard = headers.get_all(FORWARDED).into_iter().flat_map(|line| forwarded_hosts(line.as_bytes()));
    named.into_iter().chain(de_facto).chain(standard).filter_map(without_port)
}

/// The values of `host` in a `Forwarded` header: RFC 7239, section 4.
fn forwarded_hosts(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let pairs = line.split(move |byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            b';' | b',' => return !is_quoted,
            _ => {}
        }
        false
    });
    pairs.filter_map(|pair| {
        let (name, value) = pair.split_at(memchr::memchr(b'=', pair)?);
        let value = value[1..].trim_ascii();
        // A host needs no escapes. One with an escape is left as it is, and matches nothing.
        let unquoted = value.strip_prefix(b"\"").map_or(Some(value), |rest| rest.strip_suffix(b"\""))?;
        name.trim_ascii().eq_ignore_ascii_case(b"host").then_some(unquoted)
    })
}

/// The host of `https://example.com:8443`.
fn host_of_origin(origin: &HeaderValue) -> Option<&[u8]> {
    let (_scheme, authority) = origin.to_str().ok()?.split_once("://")?;
    without_port(authority.as_bytes())
}

/// The host of `example.com:8443` or `[::1]:8443`.
fn without_port(authority: &[u8]) -> Option<&[u8]> {
    let authority = authority.trim_ascii();
    let end = match authority.first()? {
        b'[' => memchr::memchr(b']', authority)? + 1,
        b':' => return None,
        _ => memchr::memchr(b':', authority).unwrap_or(authority.len()),
    };
    Some(&authority[..end])
}

/// Returns whether a host is this domain or a subdomain of it.
fn is_within(host: &[u8], domain: &str) -> bool {
    let domain = domain.strip_prefix('.').unwrap_or(domain).as_bytes();
    let Some(at) = host.len().checked_sub(domain.len()) else { return false };
    let (below, end) = host.split_at(at);
    end.eq_ignore_ascii_case(domain) && (below.is_empty() || below.ends_with(b"."))
}

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{STEP, mix};

    /// The headers of a request, and the authority of its URI.
    type Sent<'a> = &'a [(&'a str, &'a str)];

    /// In place of a header's name.
    const AUTHORITY: &str = ":authority";

    fn request(method: Method, sent: Sent<'_>) -> Request<()> {
        let mut request = Request::builder().method(method);
        for (name, value) in sent {
            request = match *name {
                AUTHORITY => request.uri(format!("https://{value}/path")),
                name => request.header(name, *value),
            };
        }
        request.body(()).unwrap()
    }

    fn cookie(same_site: SameSite, domain: Option<&str>) -> CookieConfig {
        let mut cookie = CookieConfig::default();
        cookie.set_same_site(same_site);
        if let Some(domain) = domain {
            cookie.set_domain(domain.to_owned());
        }
        cookie
    }

    /// Compares what is decided for a form that was posted with these headers.
    #[track_caller]
    fn check(domain: Option<&str>, sent: Sent<'_>, is_ours: bool) {
        let cookie = cookie(SameSite::Lax, domain);
        assert_eq!(is_barred(&request(Method::POST, sent), &cookie), !is_ours, "{sent:?}, and the domain {domain:?}");
    }

    #[test]
    fn it_depends_on_same_site_and_on_the_method() {
        const ELSEWHERE: &[Sent<'_>] = &[
            &[("sec-fetch-site", "cross-site")],
            &[("host", "example.com"), ("origin", "https://elsewhere.example")],
            &[("host", "example.com"), ("origin", "null")],
        ];
        const HERE: &[Sent<'_>] = &[
            &[],
            &[("sec-fetch-site", "same-origin")],
            // From another subdomain.
            &[("sec-fetch-site", "same-site")],
            // An address that was typed, a bookmark, a link in a mail program.
            &[("sec-fetch-site", "none")],
            &[("host", "example.com")],
            &[("host", "example.com"), ("origin", "https://example.com")],
        ];
        let safe = [Method::GET, Method::HEAD, Method::OPTIONS];
        let unsafe_methods = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, "FROB".parse().unwrap()];
        for method in safe.iter().chain(&unsafe_methods) {
            let is_barred = |same_site, sent| is_barred(&request(method.clone(), sent), &cookie(same_site, None));
            for sent in ELSEWHERE {
                assert!(!is_barred(SameSite::None, sent), "{method} {sent:?}");
                assert_eq!(is_barred(SameSite::Lax, sent), unsafe_methods.contains(method), "{method} {sent:?}");
                assert!(is_barred(SameSite::Strict, sent), "{method} {sent:?}");
            }
            for (sent, same_site) in
                HERE.iter().flat_map(|sent| [SameSite::None, SameSite::Lax, SameSite::Strict].map(|it| (sent, it)))
            {
                assert!(!is_barred(same_site, sent), "{same_site:?} {method} {sent:?}");
            }
        }
    }

    #[test]
    fn a_browser_that_says_which_site_it_was_is_believed() {
        for (site, is_ours) in [
            ("cross-site", false),
            ("same-origin", true),
            ("same-site", true),
            ("none", true),
            // None of these is sent by a browser.
            ("Cross-Site", true),
            ("", true),
        ] {
            // Whatever the proxy makes of the host: this is what `Sec-Fetch-Site` is for.
            check(
                None,
                &[("sec-fetch-site", site), ("host", "10.0.0.7:3000"), ("origin", "https://example.com")],
                is_ours,
            );
            check(
                None,
                &[("sec-fetch-site", site), ("host", "example.com"), ("origin", "https://example.com")],
                is_ours,
            );
            check(None, &[("sec-fetch-site", site), ("origin", "null")], is_ours);
        }
    }

    #[test]
    fn without_that_the_origin_is_compared_with_the_host() {
        for (host, origin, is_ours) in [
            ("example.com", "https://example.com", true),
            ("example.com", "https://elsewhere.example", false),
            ("example.com", "null", false),
            // Neither the scheme nor the port count.
            ("example.com", "http://example.com", true),
            ("example.com:8443", "https://example.com", true),
            ("example.com", "https://example.com:8443", true),
            ("example.com:3000", "http://example.com:5173", true),
            ("example.com:443", "https://example.com", true),
            ("example.com:80", "http://example.com", true),
            // Nor does case, which proxies may change and browsers do not.
            ("Example.COM", "https://example.com", true),
            ("example.com", "HTTPS://EXAMPLE.com", true),
            // A sibling, a parent and a child are other hosts, and so is one with a dot behind it.
            ("www.example.com", "https://shop.example.com", false),
            ("www.example.com", "https://example.com", false),
            ("example.com", "https://www.example.com", false),
            ("example.com", "https://example.com.", false),
            ("example.com.", "https://example.com.", true),
            ("example.com", "https://example.com.elsewhere.example", false),
            ("example.com", "https://elsewhere-example.com", false),
            // Addresses.
            ("127.0.0.1:3000", "http://127.0.0.1:3000", true),
            ("127.0.0.1:3000", "http://localhost:3000", false),
            ("[::1]:3000", "http://[::1]:3000", true),
            ("[::1]", "http://[::1]:5173", true),
            ("[2001:DB8::1]:443", "https://[2001:db8::1]", true),
            ("[2001:db8::1]", "https://[2001:db8::2]", false),
            ("[::1]", "http://[::1", false),
            // Another alphabet, as browsers send it.
            ("xn--bcher-kva.example", "https://xn--bcher-kva.example", true),
            // Pages that are not on the web.
            ("example.com", "file://", false),
            ("example.com", "chrome-extension://aohghmighlieiainnegkcijnfilokake", false),
            ("example.com", "about:blank", false),
            // What no browser sends.
            ("example.com", "", false),
            ("example.com", "example.com", false),
            ("example.com", "https:example.com", false),
            ("example.com", "https://", false),
            ("example.com", "https://:443", false),
            ("example.com", "https://user@example.com", false),
            ("example.com", "https://example.com https://elsewhere.example", false),
            ("example.com", "https://example.com, https://elsewhere.example", false),
            ("", "https://example.com", false),
            ("", "https://", false),
            (":80", "https://:80", false),
        ] {
            check(None, &[("host", host), ("origin", origin)], is_ours);
        }
        // HTTP/1.0 may have no host at all.
        check(None, &[("origin", "https://example.com")], false);
        check(None, &[], true);
    }

    #[test]
    fn http_2_names_the_host_in_its_uri() {
        for (authority, origin, is_ours) in [
            ("example.com", "https://example.com", true),
            ("example.com:8443", "https://example.com:8443", true),
            ("EXAMPLE.com", "https://example.com", true),
            ("[::1]:8443", "https://[::1]:8443", true),
            ("user:word@example.com:8443", "https://example.com", true),
            ("example.com", "https://elsewhere.example", false),
            ("example.com", "null", false),
        ] {
            check(None, &[(AUTHORITY, authority), ("origin", origin)], is_ours);
            // An old `Host` that a gateway left beside it does not count.
            check(None, &[(AUTHORITY, authority), ("origin", origin), ("host", "elsewhere.example")], is_ours);
        }
    }

    #[test]
    fn what_a_proxy_says_the_host_was_counts_as_well() {
        let behind = |name: &str, values: &[&str], is_ours: bool| {
            let mut sent = vec![("host", "10.0.0.7:3000"), ("origin", "https://example.com")];
            sent.extend(values.iter().map(|value| (name, *value)));
            check(None, &sent, is_ours);
        };
        for (values, is_ours) in [
            (&["example.com"][..], true),
            (&["example.com:8443"], true),
            (&["EXAMPLE.COM"], true),
            (&["cdn.example, example.com"], true),
            (&["example.com,cdn.example"], true),
            (&["cdn.example , example.com:443 ,10.0.0.3"], true),
            (&["cdn.example", "example.com"], true),
            (&["cdn.example"], false),
            (&["example.com.cdn.example"], false),
            (&["example.com/path"], false),
            (&["", ",", ", ,", ":443"], false),
        ] {
            behind("x-forwarded-host", values, is_ours);
        }
        for (values, is_ours) in [
            (&["host=example.com"][..], true),
            (&["for=192.0.2.43; proto=https; host=example.com"], true),
            (&["for=192.0.2.43;HOST=example.com;proto=https"], true),
            (&[r#"for="[2001:db8::1]:4711";host="example.com:8443";by=_me"#], true),
            (&[r#"for=_a;host=cdn.example, for=_b;host="example.com""#], true),
            (&["for=_a;host=cdn.example", "for=_b;host=example.com"], true),
            (&["host = example.com"], true),
            (&["for=192.0.2.43"], false),
            (&["host=cdn.example"], false),
            (&["for=example.com;by=example.com"], false),
            (&["xhost=example.com", "host-x=example.com"], false),
            // One value with separators in it, and not a pair of its own.
            (&[r#"for="_a;host=example.com""#], false),
            (&[r#"for="_a,host=example.com,""#], false),
            (&[r#"for="\";host=example.com;\"""#], false),
            (&[r#"for="\\";host=example.com"#], true),
            // Quotes without an end.
            (&[r#"host="example.com"#], false),
            (&[r#"for="x;host=example.com"#], false),
            (&["host=\""], false),
            (&["", "host", "host=", "host=\"\"", "=example.com", ";;,,;"], false),
        ] {
            behind("forwarded", values, is_ours);
        }
        // They are nothing to a browser that says it is another site, or that hides which.
        check(None, &[("sec-fetch-site", "cross-site"), ("x-forwarded-host", "example.com")], false);
        check(None, &[("origin", "null"), ("x-forwarded-host", "null"), ("host", "null")], false);
    }

    #[test]
    fn all_hosts_of_the_cookies_domain_are_one_site() {
        for (domain, origin, is_ours) in [
            (None, "https://shop.example.com", false),
            (Some("example.com"), "https://shop.example.com", true),
            (Some("example.com"), "https://a.b.shop.example.com:8443", true),
            (Some("example.com"), "https://example.com", true),
            (Some(".example.com"), "https://example.com", true),
            (Some(".example.com"), "https://shop.example.com", true),
            (Some("Example.COM"), "https://SHOP.example.com", true),
            (Some("www.example.com"), "https://example.com", false),
            (Some("www.example.com"), "https://shop.example.com", false),
            (Some("example.com"), "https://elsewhere-example.com", false),
            (Some("example.com"), "https://example.com.elsewhere.example", false),
            (Some("example.com"), "https://com", false),
            (Some("example.com"), "null", false),
        ] {
            check(domain, &[("host", "www.example.com"), ("origin", origin)], is_ours);
        }
        // What the browser says of itself goes before that.
        check(Some("example.com"), &[("sec-fetch-site", "cross-site"), ("origin", "https://example.com")], false);
    }

    #[test]
    fn random_bytes_do_no_harm_and_are_not_our_host() {
        let alphabet = b"\"\\;,:=[]. \thost@/-\xff\x80aA0";
        let mut state = 1;
        let mut below = |end: usize| {
            state = mix(state).wrapping_add(STEP);
            (state % end as u64) as usize
        };
        for _ in 0..20_000 {
            let names = ["host", "forwarded", "x-forwarded-host", "origin"];
            let mut request = Request::new(());
            *request.method_mut() = Method::POST;
            request.headers_mut().insert(ORIGIN, HeaderValue::from_static("https://example.com"));
            for name in &names[..1 + below(4)] {
                let bytes: Vec<u8> = (0..below(20)).map(|_| alphabet[below(alphabet.len())]).collect();
                request.headers_mut().insert(*name, HeaderValue::from_bytes(&bytes).unwrap());
            }
            let is_barred = is_barred(&request, &CookieConfig::default());
            // If its origin is random too, it may be that of the random host.
            assert!(is_barred || request.headers()[ORIGIN] != "https://example.com", "{request:?}");
        }
    }
}
