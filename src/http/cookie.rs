//! The cookie: found in a request, set or removed in a response.

use std::{borrow::Cow, time::Duration};

use cookie::{Cookie, SameSite, time};
use http::{HeaderMap, HeaderValue, header};

use crate::{
    record::token::SessionId,
    session::{
        commit::NewCookie,
        origin::VISITOR,
        presented::{CookieValue, MAX_COOKIES},
    },
};

/// The name and attributes of the cookie. Each setter checks its option against all earlier ones.
#[derive(Clone, Debug)]
pub(crate) struct CookieConfig {
    /// The configured name, or the strictest default that the other options allow.
    name: String,
    chosen_name: Option<String>,
    path: String,
    domain: Option<String>,
    same_site: SameSite,
    secure: Option<bool>,
    http_only: bool,
    partitioned: bool,
    persistent: bool,
    /// All attributes except `Max-Age`, in the form that follows the value.
    attributes: String,
    /// Everything after the name, for removing a cookie.
    removal: String,
}

impl CookieConfig {
    /// Returns the values of cookies with exactly this name that could be IDs by their length, in the order received.
    ///
    /// Nothing is decoded or trimmed, because a sibling domain could use leniency with names to get around `__Host-`. At most
    /// [`MAX_COOKIES`] and one more of each name are taken, because they are kept until the load. No browser has that many unless
    /// they were planted.
    pub(crate) fn values<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = CookieValue<'a>> {
        let name = self.name().as_bytes();
        let lines = headers.get_all(header::COOKIE).into_iter();
        let mut counts = (0, 0);
        let pairs = lines.flat_map(|line| {
            let mut rest = Some(line.as_bytes());
            std::iter::from_fn(move || {
                let line = rest?;
                let end = memchr::memchr(b';', line).unwrap_or(line.len());
                rest = line.get(end + 1..);
                Some(&line[..end])
            })
        });
        pairs
            .filter_map(move |pair| {
                let pair = pair.strip_prefix(b" ").unwrap_or(pair);
                let rest = pair.strip_prefix(name)?;
                let is_id = |value: &[u8]| (SessionId::MIN_LEN..=SessionId::MAX_LEN).contains(&value.len());
                let text = |value| std::str::from_utf8(value).ok();
                if let Some(value) = rest.strip_prefix(b"=").filter(|value| is_id(value)) {
                    return text(value).map(CookieValue::User);
                }
                let value = rest.strip_prefix(VISITOR.as_bytes())?.strip_prefix(b"=")?;
                text(value).filter(|value| is_id(value.as_bytes())).map(CookieValue::Visitor)
            })
            .filter(move |cookie| {
                let count = match cookie {
                    CookieValue::User(_) => &mut counts.0,
                    CookieValue::Visitor(_) => &mut counts.1,
                };
                *count += 1;
                // One more than the limit, so that the load knows that there are too many.
                *count <= MAX_COOKIES + 1
            })
    }

    /// Returns the header value that sets the cookie. If it is persistent, the browser keeps it for this long.
    pub(crate) fn set(&self, cookie: &NewCookie, left: Duration) -> Option<HeaderValue> {
        let suffix = if cookie.is_visitors { VISITOR } else { "" };
        let parts = [self.name(), suffix, "=", cookie.id.as_str(), &self.attributes];
        // Never zero, which would remove the cookie although the session still lives for a fraction of a second.
        let left = left.min(MAX_AGE_LIMIT).as_secs().max(1);
        let digits = left.checked_ilog10().map_or(1, |log| log as usize + 1);
        let max_age = if self.persistent { MAX_AGE.len() + digits } else { 0 };
        let mut line = String::with_capacity(parts.map(str::len).iter().sum::<usize>() + max_age);
        parts.into_iter().for_each(|part| line.push_str(part));
        if self.persistent {
            line.push_str(MAX_AGE);
            line.push_str(&left.to_string());
        }
        sensitive(line)
    }

    /// Returns the header value that removes the cookie. It has the attributes that the cookie was set with; otherwise
    /// browsers keep it.
    pub(crate) fn remove(&self, is_visitors: bool) -> Option<HeaderValue> {
        let suffix = if is_visitors { VISITOR } else { "" };
        sensitive([self.name(), suffix, &self.removal].concat())
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    #[inline]
    pub(crate) fn same_site(&self) -> SameSite {
        self.same_site
    }

    #[track_caller]
    pub(crate) fn set_name(&mut self, name: Cow<'_, str>) {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        assert!(!name.is_empty() && name.len() <= MAX_NAME, "a cookie name must have 1 to {MAX_NAME} characters");
        assert!(
            name.bytes().all(is_token),
            "a cookie name must be a token of RFC 9110, without spaces and separators such as / or ="
        );
        self.chosen_name = Some(name.into_owned());
        self.check();
    }

    #[track_caller]
    pub(crate) fn set_path(&mut self, path: String) {
        assert!(path.starts_with('/'), "a cookie path must begin with a slash");
        assert_attribute(&path);
        self.path = path;
        self.check();
    }

    #[track_caller]
    pub(crate) fn set_domain(&mut self, domain: String) {
        assert!(!domain.is_empty(), "a cookie domain must not be empty");
        assert_attribute(&domain);
        let host = domain.strip_prefix('.').unwrap_or(&domain);
        assert!(
            host.len() <= MAX_DOMAIN && host.split('.').all(is_label),
            "a cookie domain must be a host name such as example.com, without a scheme or a port: browsers reject the cookie \
             otherwise"
        );
        self.domain = Some(domain);
        self.check();
    }

    #[track_caller]
    pub(crate) fn set_same_site(&mut self, same_site: SameSite) {
        self.same_site = same_site;
        self.check();
    }

    #[track_caller]
    pub(crate) fn set_secure(&mut self, secure: bool) {
        self.secure = Some(secure);
        self.check();
    }

    #[track_caller]
    pub(crate) fn set_http_only(&mut self, http_only: bool) {
        self.http_only = http_only;
        self.check();
    }

    #[track_caller]
    pub(crate) fn set_partitioned(&mut self, partitioned: bool) {
        self.partitioned = partitioned;
        self.check();
    }

    pub(crate) fn set_persistent(&mut self, persistent: bool) {
        self.persistent = persistent;
    }

    /// Returns how long a browser keeps the cookie at most. `None` means until the browser is closed.
    pub(crate) fn max_age(&self) -> Option<Duration> {
        self.persistent.then_some(MAX_AGE_LIMIT)
    }

    fn secure(&self) -> bool {
        self.secure.unwrap_or(true)
    }

    /// Panics for combinations that browsers reject, because no client would ever get the session.
    #[track_caller]
    fn check(&mut self) {
        self.name = match &self.chosen_name {
            Some(name) => name.clone(),
            None if self.secure() && self.domain.is_none() && self.path == "/" => "__Host-id".to_owned(),
            None if self.secure() => "__Secure-id".to_owned(),
            None => "id".to_owned(),
        };
        let line = self.cookie("").to_string();
        self.attributes = line[self.name().len() + 1..].to_owned();
        let mut removal = self.cookie("");
        removal.set_max_age(time::Duration::ZERO);
        removal.set_expires(time::OffsetDateTime::UNIX_EPOCH);
        self.removal = removal.to_string().split_off(self.name().len());
        if !self.secure() {
            assert!(
                self.same_site != SameSite::None,
                "SameSite=None needs secure(true): browsers reject the cookie otherwise"
            );
            assert!(!self.partitioned, "a partitioned cookie needs secure(true): browsers reject the cookie otherwise");
        }
        // Check the longer of both names: `__Host` has no prefix, but `__Host-visitor` has one.
        let name = [self.chosen_name.as_deref().unwrap_or_default(), VISITOR].concat();
        // Browsers compare these prefixes without regard to case.
        let has_prefix =
            |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        if has_prefix("__Host-") {
            assert!(self.domain.is_none(), "a cookie named __Host-… must not have a domain");
            assert!(self.path == "/", "a cookie named __Host-… must have the path /");
        }
        let needs_http = has_prefix("__Http-") || has_prefix("__Host-Http-");
        if needs_http || has_prefix("__Host-") || has_prefix("__Secure-") {
            assert!(self.secure(), "a cookie named __Host-…, __Http-… or __Secure-… needs secure(true)");
        }
        if needs_http {
            assert!(self.http_only, "a cookie named __Http-… or __Host-Http-… needs http_only(true)");
        }
    }

    fn cookie<'a>(&'a self, value: &'a str) -> Cookie<'a> {
        let mut cookie = Cookie::build((self.name(), value))
            .path(self.path.as_str())
            .same_site(self.same_site)
            .secure(self.secure())
            .http_only(self.http_only)
            .partitioned(self.partitioned)
            .build();
        if let Some(domain) = &self.domain {
            cookie.set_domain(domain.as_str());
        }
        cookie
    }
}

impl Default for CookieConfig {
    fn default() -> Self {
        let mut config = Self {
            name: String::new(),
            chosen_name: None,
            path: "/".to_owned(),
            domain: None,
            same_site: SameSite::Lax,
            secure: None,
            http_only: true,
            partitioned: false,
            persistent: true,
            attributes: String::new(),
            removal: String::new(),
        };
        config.check();
        config
    }
}

/// Returns whether this is a valid label of a host name.
fn is_label(label: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=63).contains(&label.len()) && label.bytes().all(is_plain) && !label.starts_with('-') && !label.ends_with('-')
}

#[track_caller]
fn assert_attribute(value: &str) {
    let plain = value.bytes().all(|b| b.is_ascii_graphic() && b != b';');
    assert!(plain, "a cookie attribute must be printable ASCII without spaces and semicolons");
    assert!(value.len() <= MAX_ATTRIBUTE, "a cookie attribute must have at most {MAX_ATTRIBUTE} characters");
}

fn sensitive(cookie: String) -> Option<HeaderValue> {
    // The name and the attributes were checked when they were set, and an ID is ASCII, so this is always a valid header value.
    let mut value = HeaderValue::try_from(cookie).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The longest `Max-Age` that browsers accept: RFC 6265bis, section 5.5.
pub(crate) const MAX_AGE_LIMIT: Duration = Duration::from_secs(400 * 86_400);
const MAX_AGE: &str = "; Max-Age=";

/// With these limits both attributes, the name and the longest ID stay below the 4096 bytes that browsers accept.
const MAX_ATTRIBUTE: usize = 1024;
const MAX_NAME: usize = 256;
/// The longest host name: RFC 1035, section 2.3.4.
const MAX_DOMAIN: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    /// Values are given, and come back, by their first character; they are as long as the shortest ID.
    fn values(lines: &[&str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            let line = ["x", "y", "z"].iter().fold((*line).to_owned(), |line, value| {
                line.replace(&format!("={value}"), &format!("={}", value.repeat(SessionId::MIN_LEN)))
            });
            headers.append(header::COOKIE, HeaderValue::from_str(&line).unwrap());
        }
        let config = CookieConfig::default();
        let text = |value| match value {
            CookieValue::User(value) => value[..1].to_owned(),
            CookieValue::Visitor(value) => format!("visitor {}", &value[..1]),
        };
        config.values(&headers).map(text).collect()
    }

    fn named(id: &str) -> NewCookie {
        NewCookie { id: SessionId::known(id), deadline: 0, is_visitors: false }
    }

    #[test]
    fn a_visitors_cookie_has_a_name_of_its_own() {
        let config = CookieConfig::default();
        let users = config.set(&named("x"), Duration::from_secs(9)).unwrap();
        let visitors = config.set(&NewCookie { is_visitors: true, ..named("x") }, Duration::from_secs(9)).unwrap();
        let users = users.to_str().unwrap();
        assert_eq!(visitors.to_str().unwrap(), users.replace("__Host-id=", "__Host-id-visitor="));
        let removed = config.remove(true).unwrap();
        assert!(removed.to_str().unwrap().starts_with("__Host-id-visitor=; "), "{removed:?}");
    }

    #[test]
    fn only_the_very_name_is_ours() {
        assert_eq!(values(&["a=1; __Host-id=x; b=2", "__Host-id=y"]), ["x", "y"]);
        assert_eq!(values(&["__Host-id-visitor=x; __Host-id=y; __Host-id-visito=z"]), ["visitor x", "y"]);
        assert_eq!(values(&["__Host-id=x;__Host-id=y"]), ["x", "y"]);
        for foreign in [
            "__host-id=x",
            "__Host-id =x",
            "=__Host-id=x",
            "__Host-idx=x",
            "x__Host-id=x",
            "__Host%2Did=x",
            "\t__Host-id=x",
            "a=1;  __Host-id=x",
            "__Host-id",
            "\"__Host-id=x\"",
        ] {
            assert!(values(&[foreign]).is_empty(), "{foreign}");
        }
    }

    #[test]
    fn a_cookie_is_set_as_its_library_would_set_it() {
        let mut config = CookieConfig::default();
        let options: [fn(&mut CookieConfig); 6] = [
            |_| {},
            |config| config.set_path("/app".to_owned()),
            |config| config.set_domain("example.com".to_owned()),
            |config| config.set_partitioned(true),
            |config| config.set_http_only(false),
            |config| config.set_persistent(false),
        ];
        for option in options {
            option(&mut config);
            for seconds in [0, 9, 10, 86_400, u64::MAX] {
                let mut expected = config.cookie("x");
                if config.persistent {
                    expected.set_max_age(time::Duration::seconds(seconds.clamp(1, 400 * 86_400).cast_signed()));
                }
                let set = config.set(&named("x"), Duration::from_secs(seconds)).unwrap();
                assert_eq!(set, expected.to_string());
                assert!(set.is_sensitive());
            }
        }
    }

    #[test]
    fn in_whatever_order_it_is_set_up_a_cookie_is_the_same() {
        type Option = fn(&mut CookieConfig);
        const SECURE: [Option; 5] = [
            |config| config.set_name("sid".into()),
            |config| config.set_domain(".example.com".to_owned()),
            |config| config.set_path("/app".to_owned()),
            |config| config.set_partitioned(true),
            |config| config.set_same_site(SameSite::None),
        ];
        const PLAIN: [Option; 5] = [
            |config| config.set_secure(false),
            |config| config.set_domain("example.com".to_owned()),
            |config| config.set_same_site(SameSite::Strict),
            |config| config.set_http_only(false),
            |config| config.set_persistent(false),
        ];
        for options in [SECURE, PLAIN] {
            let mut last = None;
            // Every number in the system of base 5 with five different digits is an order.
            let orders = (0..5_usize.pow(5)).map(|n| [1, 5, 25, 125, 625].map(|place| n / place % 5));
            for order in orders.filter(|order| (0..5).all(|option| order.contains(&option))) {
                let mut config = CookieConfig::default();
                for option in order {
                    options[option](&mut config);
                }
                let mut expected = config.cookie("x");
                if config.persistent {
                    expected.set_max_age(time::Duration::seconds(1));
                }
                let set = config.set(&named("x"), Duration::from_secs(1)).unwrap();
                assert_eq!(set, expected.to_string());
                assert_eq!(last.get_or_insert_with(|| set.clone()), &set);
            }
        }
    }

    #[test]
    fn the_longest_cookie_is_short_enough() {
        let mut config = CookieConfig::default();
        config.set_name("n".repeat(MAX_NAME).into());
        config.set_path(format!("/{}", "p".repeat(MAX_ATTRIBUTE - 1)));
        config.set_domain(["d".repeat(63), "d".repeat(63), "d".repeat(63), "d".repeat(61)].join("."));
        config.set_partitioned(true);
        config.set_same_site(SameSite::None);
        assert!(config.remove(true).unwrap().len() + SessionId::MAX_LEN + 20 <= 4096);
    }
}
