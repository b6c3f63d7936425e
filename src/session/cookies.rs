//! The session cookies of a request, until its session is loaded.

use crate::{
    record::token::{Credentials, IdText},
    session::presented::Presented,
    sessions::engine::Engine,
};

/// The value of a session cookie.
pub(crate) enum CookieValue<'a> {
    User(&'a str),
    Visitor(&'a str),
}

/// The values of the session cookies, as received.
pub(crate) struct Cookies {
    /// The user's cookies and then the visitor's, each with a semicolon after it.
    text: Box<str>,
    visitors_at: usize,
}

impl Cookies {
    /// Copies the values. Returns `None` if there are none.
    #[inline]
    pub(crate) fn collect<'a>(cookies: impl Iterator<Item = CookieValue<'a>>) -> Option<Self> {
        let (mut users, mut visitors) = (String::new(), String::new());
        for cookie in cookies {
            let (joined, value) = match cookie {
                CookieValue::User(value) => (&mut users, value),
                CookieValue::Visitor(value) => (&mut visitors, value),
            };
            if joined.is_empty() {
                // There is rarely more than one cookie.
                joined.reserve_exact(value.len() + 1);
            }
            joined.push_str(value);
            joined.push(';');
        }
        let visitors_at = users.len();
        users.push_str(&visitors);
        (!users.is_empty()).then(|| Self { text: users.into_boxed_str(), visitors_at })
    }

    pub(crate) fn has_users(&self) -> bool {
        self.visitors_at > 0
    }

    pub(crate) fn has_visitors(&self) -> bool {
        self.visitors_at < self.text.len()
    }

    /// Returns the next ID from this position. Visitors' cookies come last, and count only if no user's cookie did.
    pub(crate) fn next_id(&self, at: &mut usize, presented: &mut Presented, engine: &Engine) -> Option<Credentials> {
        loop {
            let is_visitors = *at >= self.visitors_at;
            let rest = self.text.get(*at..).filter(|rest| !rest.is_empty())?;
            if is_visitors && !presented.wants_visitors() || !presented.may_look_at_one_more() {
                return None;
            }
            let value = &rest[..memchr::memchr(b';', rest.as_bytes()).unwrap_or(rest.len())];
            *at += value.len() + 1;
            match engine.credentials(value) {
                IdText::Id(id) if id.record.owner().is_none() == is_visitors => {
                    presented.user_id |= !is_visitors;
                    return Some(id);
                }
                // It may be one of our IDs, encrypted with a key that this process does not have.
                IdText::Foreign if !is_visitors => presented.besides.unproven = true,
                IdText::Id(_) | IdText::Foreign | IdText::Malformed => presented.malformed += 1,
            }
        }
    }
}
